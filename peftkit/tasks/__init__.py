"""What a recipe says about its task: how rows become batches, and what a model's outputs mean. One
file a task.
"""
