"""One file per sub-command of `ppe`; a file is imported only when its command runs."""
