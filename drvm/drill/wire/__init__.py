"""How the addresses of a drill's isolated network are reached: from a network namespace of its own,
by a process that ends with drvm. docs/adr/047-reaching-a-drilled-guest.md."""
