"""Which changes of basis each axis allows: inferred from the laws of the ops that touch it."""
