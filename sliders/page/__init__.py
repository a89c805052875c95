"""A page in the browser: turn dials and see.  `session` is what it does, `app` how it looks."""
