"""Adapters on a backbone: attached, detached, saved, loaded, merged, combined and exported."""
