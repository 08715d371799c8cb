"""Which model a sweep ends with: what there is to choose from, how it is judged, and the choice."""
