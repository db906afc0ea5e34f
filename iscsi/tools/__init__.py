"""The `ppe iscsi` and `ppe target` commands; each loads its machinery when it runs."""
