"""The stages of a pass, one per file, each `step(engine) -> work_count`."""
