"""A machine for a person: what is typed goes to its monitor or its guest, and what it says comes as it is said."""
