"""The private network of a VM, as its pilot carries it: frames of the guest's card, to the pilots of the other members.

`switch` decides, from a table, what a guest may send, where that goes, and what it may be sent; it learns nothing from
frames, floods nothing, and answers ARP, DHCP and names itself (`answers`). The rest moves bytes: `port` the guest's
card, `links` the ways to other pilots, `records` what goes over them, `hub` the process that has them all, which the
pilot starts and keeps (`attachment`). Nothing here knows what a frame is for.
"""
