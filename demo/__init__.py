"""A page in the browser: turn dials and see.  `demo.session` is what it does, `demo.app` how it looks."""
