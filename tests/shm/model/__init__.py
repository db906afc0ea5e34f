"""A model checker for the very source of the ring, the wait and the doorbell.

`source` turns the shipped functions into generators that stop at every access to shared memory and
at every system call; `machine` runs several of them in every order under x86-TSO; `programs` are
the small programs that are checked. Nothing is restated: what is checked is what is shipped.
"""
