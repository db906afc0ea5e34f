"""The iSCSI target: sessions, cold SCSI and the server, on the host's client API. READ and WRITE of
memory-backed LUNs stay in compiled code from the completion to the posted send.
"""
