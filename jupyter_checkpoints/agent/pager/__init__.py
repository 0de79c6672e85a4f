"""Lazy resume: a kernel answers while its memory is still arriving.

CRIU restores everything but the pages of private anonymous memory, and hands a userfaultfd of each
process to whoever listens on ``lazy-pages.socket``. That is a process of ours, one for each resume:
it gives a process that touches a missing page that page and its neighbours at once, and brings the
rest meanwhile. When all is there it ends.

A missing page that nobody answers for any more reads as zeros, without an error. So the descriptors
are held by two processes (:mod:`.pair`), either of which replaces the other, and what cannot be
filled any more is killed.
"""
