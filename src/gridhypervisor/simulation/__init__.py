"""Sites in virtual time that speak the relay's wire: for tests of the real loop, and for its figures at scale.

What is simulated: the way to the relay, the relay, the spool with its lags, a batch system, nodes, pilots, guests; and
what befalls them. What is not: bytes of images, the inside of a guest. Nothing here decides what the controller does.
"""
