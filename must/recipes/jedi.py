from must.experiment.run import Recipe
from must.experiment.settings import Must

RECIPE = Recipe("jedi", Must, (), lambda m, w: [], lambda m: None, lambda m: None)
