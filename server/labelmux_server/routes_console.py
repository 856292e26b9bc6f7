"""The console: the files of clients/web as they are, the page at ``/``.

The page holds nothing that needs a key; what it asks the API for does.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

#: In a checkout a link to where they are written; a built package holds the files themselves.
FOLDER = Path(__file__).parent / "web"

#: Nothing from elsewhere, nothing inline, and no way for a string to become markup.
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked again each time, so that after an upgrade no old module meets a new one.
    "cache-control": "no-cache",
}

_files = StaticFiles(directory=FOLDER, check_dir=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The console's page."""
    return await _answer(request, "index.html")


@router.get("/console/{file}")
async def asset(request: Request, file: str) -> Response:
    """What the page is made of."""
    return await _answer(request, file)


async def _answer(request: Request, file: str) -> Response:
    response = await _files.get_response(file, request.scope)
    response.headers.update(HEADERS)
    return response
