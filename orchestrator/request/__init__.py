"""One request: checked, followed through its legs, turned into text."""
