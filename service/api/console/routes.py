"""Every page of the console, none of them a part of the described API."""

from fastapi import APIRouter

from service.api.console import assets, audit, external, galleries, jobs, keys, styleguide, upgrades, versions

PAGES = (assets, audit, external, galleries, jobs, keys, styleguide, upgrades, versions)

router = APIRouter(include_in_schema=False)
for module in PAGES:
    router.include_router(module.router)
