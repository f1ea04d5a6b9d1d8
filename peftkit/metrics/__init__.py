"""How good predictions are: classes, rankings, entities, texts. Well-kept libraries do the counting."""
