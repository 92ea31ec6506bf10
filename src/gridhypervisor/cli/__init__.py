"""`ghv`: what people type, and what they see.

It decides nothing: it reads flags and files, asks the service through the client, and shows the answers. Results go to
stdout; progress, warnings and errors go to stderr. Commands are imported when they are used, so that `ghv` starts fast.
"""
