"""Record a digest of every packaged recipe's options anew: python tests/record_recipes.py."""

from __future__ import annotations

import json

from test_recipes import GOLDEN, RECIPES, recorded

if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({recipe: recorded(recipe) for recipe in RECIPES}, indent=0) + "\n")
