"""How an upgrade is judged, as mathematics: exact neighbours in streamed galleries, flips, slices, intervals, spaces.

Whether what was measured is enough is no question of this package: `service.domain.judging` has the gates.
"""
