"""What a recipe says about its task, one file a task: from rows to batches to measured outputs."""
