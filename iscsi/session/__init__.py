"""The initiator's session: login, commands and a block device over the host library's streams."""
