"""Which keys a recipe's YAML may have, and how they are read. Imports nothing heavy, so that
`--help` is quick.
"""
