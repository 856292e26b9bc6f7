"""Labelled rows in, an adapter file and a report out."""
