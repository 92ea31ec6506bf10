"""The REST API: the `Backend` Protocol over HTTP, on a Unix socket that is the user's alone.

It decides nothing about jobs, sites or images. It reads requests strictly, says what is wrong with them field by
field, writes answers and streams, and turns every error into an RFC 9457 problem.
"""
