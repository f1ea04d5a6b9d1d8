"""From files of rows to batches of tokens: formats, chat rendering and loss masks, collation,
preview.
"""
