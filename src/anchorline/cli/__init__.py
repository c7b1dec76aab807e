"""The command line: parse, build a recipe, make one call."""
