from phalanx.v1 import registry_pb2 as _registry_pb2
from phalanx.v1 import replica_pb2 as _replica_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("deployment", "plan_json", "replicas", "active_requests", "draining", "objectives", "recent", "events")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVES_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    plan_json: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    active_requests: int
    draining: bool
    objectives: ObjectivesReport
    recent: LatencyReport
    events: _containers.RepeatedCompositeFieldContainer[_registry_pb2.Event]
    def __init__(self, deployment: _Optional[str] = ..., plan_json: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., active_requests: _Optional[int] = ..., draining: _Optional[bool] = ..., objectives: _Optional[_Union[ObjectivesReport, _Mapping]] = ..., recent: _Optional[_Union[LatencyReport, _Mapping]] = ..., events: _Optional[_Iterable[_Union[_registry_pb2.Event, _Mapping]]] = ...) -> None: ...

class LatencyReport(_message.Message):
    __slots__ = ("outputs", "ttft_p50_seconds", "ttft_p95_seconds", "tpot_p50_seconds", "tpot_p95_seconds")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TTFT_P50_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TTFT_P95_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TPOT_P50_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TPOT_P95_SECONDS_FIELD_NUMBER: _ClassVar[int]
    outputs: int
    ttft_p50_seconds: float
    ttft_p95_seconds: float
    tpot_p50_seconds: float
    tpot_p95_seconds: float
    def __init__(self, outputs: _Optional[int] = ..., ttft_p50_seconds: _Optional[float] = ..., ttft_p95_seconds: _Optional[float] = ..., tpot_p50_seconds: _Optional[float] = ..., tpot_p95_seconds: _Optional[float] = ...) -> None: ...

class ObjectivesReport(_message.Message):
    __slots__ = ("ttft_seconds", "tpot_seconds", "finished", "kept", "shed")
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TPOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    ttft_seconds: float
    tpot_seconds: float
    finished: int
    kept: int
    shed: int
    def __init__(self, ttft_seconds: _Optional[float] = ..., tpot_seconds: _Optional[float] = ..., finished: _Optional[int] = ..., kept: _Optional[int] = ..., shed: _Optional[int] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica", "connected", "load", "vitals")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    VITALS_FIELD_NUMBER: _ClassVar[int]
    replica: _registry_pb2.Replica
    connected: bool
    load: _replica_pb2.ReplicaLoad
    vitals: _containers.RepeatedCompositeFieldContainer[_registry_pb2.RankVitals]
    def __init__(self, replica: _Optional[_Union[_registry_pb2.Replica, _Mapping]] = ..., connected: _Optional[bool] = ..., load: _Optional[_Union[_replica_pb2.ReplicaLoad, _Mapping]] = ..., vitals: _Optional[_Iterable[_Union[_registry_pb2.RankVitals, _Mapping]]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: int
    def __init__(self, seconds: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("unfinished_requests",)
    UNFINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    unfinished_requests: int
    def __init__(self, unfinished_requests: _Optional[int] = ...) -> None: ...
