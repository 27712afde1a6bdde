"""``GET /metrics``, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from scheduler.stats import poll
from server.gauges import Scrape
from server.routes.service import service_of

router = APIRouter()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Text of Prometheus or OpenMetrics, as the Accept header asks."""
    service = service_of(request)
    machine, answers = await asyncio.gather(service.scheduler.machine(), poll(service.scheduler.residents()))
    for model, answer in answers.items():
        service.metrics.scraped(model, answer is not None)
    stats = {model: answer for model, answer in answers.items() if answer is not None}
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    scrape = Scrape(service.metrics.registry, service.scheduler.residents(), machine, stats)
    return Response(encode(scrape), headers={"content-type": media_type})
