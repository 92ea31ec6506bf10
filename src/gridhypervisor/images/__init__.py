"""Images: a content-addressed repository of what guests boot from, and the ways to fill it.

`repository` keeps layers, image manifests and tags; `recipe` says what an image file may hold, `build` makes an image
of one from Debian packages, `boot` the kernel and initrd that all images share, `importing` an image of a disk.
Which image a job uses and where its bytes are sent is decided elsewhere.
"""
