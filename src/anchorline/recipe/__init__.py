"""A recipe: the one YAML file of a run, its stages, and the run folder that they write."""

from __future__ import annotations

from anchorline.recipe.advising import ADVICE, decided, own_pairs
from anchorline.recipe.config import Prompts, Recipe, load_recipe
from anchorline.recipe.context import Calls
from anchorline.recipe.run import Summary, run, try_out

__all__ = ["ADVICE", "Calls", "Prompts", "Recipe", "Summary", "decided", "load_recipe", "own_pairs", "run", "try_out"]
