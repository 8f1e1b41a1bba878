"""`phalanx.v1.Admin`: the cluster as this gateway knows it, and draining."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc

from cluster.gateway.admission import Admission
from cluster.gateway.errors import Context
from cluster.gateway.fleet import Fleet
from cluster.gateway.kept import Kept
from cluster.gateway.watch import RegistryWatch
from phalanx.v1 import admin_pb2, admin_pb2_grpc, registry_pb2

_DEFAULT_DRAIN_S = 30


class AdminService(admin_pb2_grpc.AdminServicer):
    """`news` is the coordinator's last message; `coordinator` asks it for more."""

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        kept: Kept,
        drain: Callable[[float], Awaitable[int]],
        coordinator: RegistryWatch,
    ) -> None:
        self._coordinator = coordinator
        self._fleet = fleet
        self._admission = admission
        self._kept = kept
        self._drain = drain
        self.news = registry_pb2.WatchResponse()

    async def GetCluster(self, request: admin_pb2.GetClusterRequest, context: Context) -> admin_pb2.GetClusterResponse:
        vitals = await self._coordinator.vitals()
        return admin_pb2.GetClusterResponse(
            deployment=self.news.deployment,
            plan_json=self.news.plan_json,
            replicas=[
                admin_pb2.ReplicaStatus(
                    replica=replica,
                    connected=link is not None and link.connected,
                    load=None if link is None else link.load,
                    vitals=[rank for rank in vitals if (rank.replica, rank.epoch) == (replica.id, replica.epoch)],
                )
                for replica, link in self._fleet.replicas
            ],
            active_requests=self._admission.requests,
            draining=self._admission.draining,
            objectives=self._kept.report(),
            recent=self._kept.recent(),
            events=self.news.events,
        )

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        return admin_pb2.DrainResponse(unfinished_requests=await self._drain(request.seconds or _DEFAULT_DRAIN_S))

    async def Scale(self, request: registry_pb2.ScaleRequest, context: Context) -> registry_pb2.ScaleResponse:
        try:
            ready = await self._coordinator.scale(request.replicas, context.time_remaining())
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        return registry_pb2.ScaleResponse(ready=ready)
