"""iSER (RFC 7145, with the header that is deployed): the second implementation of the datamover
interface (`iscsi.wire.mover`), over work requests of a queue pair instead of a byte stream.
"""
