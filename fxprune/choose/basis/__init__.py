"""Which basis: coordinates of a free axis, ordered by what discarding them costs."""
