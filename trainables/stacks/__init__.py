"""Stage one of many trials at once: heads on the same cached vectors, trained as the layers of one stack."""
