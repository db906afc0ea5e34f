#!/bin/busybox sh
# load GROUP...: insert the kernel modules of a group, in the order in which they need each other.
# One that is there already, or that drives hardware this machine lacks, is no error.
for group in "$@"; do
    while read -r module; do
        insmod "/modules/$module" 2>/dev/null
    done <"/modules/$group.list"
done
