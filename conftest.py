"""The package's own tests; pytest wants plugins for them named here."""

pytest_plugins = ["pytester"]
