"""What editors and studies need of a language model: recall, covariance, facts, in-context tasks."""
