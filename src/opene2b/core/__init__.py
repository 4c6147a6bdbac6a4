"""The words and the rules of OpenE2B; no I/O, standard library only.

`ids` names things, `records` says what is known of them, `states` what may happen to a sandbox,
`errors` what can go wrong, `resources` how much of a machine a sandbox gets.
"""
