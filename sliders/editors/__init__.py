"""Editing methods: each fits an `Edit` of the algebra on a model."""
