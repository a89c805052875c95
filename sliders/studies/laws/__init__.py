"""Which laws sliders obey: of weights, of fitting, of behaviour."""
