"""The console: pages in which an operator sees galleries and upgrades, and acts on them.

A page is made here from what the domain returns, whole and readable without JavaScript. What changes something is a
form that names a call of the HTTP API; the modules in `service/console/static` send it, and fetch the page again when
something happened.
"""
