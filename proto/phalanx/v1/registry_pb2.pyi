from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_EPOCH_STARTED: _ClassVar[EventKind]
    EVENT_KIND_EPOCH_READY: _ClassVar[EventKind]
    EVENT_KIND_EPOCH_ENDED: _ClassVar[EventKind]
    EVENT_KIND_REPLICA_DRAINING: _ClassVar[EventKind]
    EVENT_KIND_REPLICA_GONE: _ClassVar[EventKind]
    EVENT_KIND_SCALE: _ClassVar[EventKind]
    EVENT_KIND_ROLL: _ClassVar[EventKind]

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_STARTING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_EPOCH_STARTED: EventKind
EVENT_KIND_EPOCH_READY: EventKind
EVENT_KIND_EPOCH_ENDED: EventKind
EVENT_KIND_REPLICA_DRAINING: EventKind
EVENT_KIND_REPLICA_GONE: EventKind
EVENT_KIND_SCALE: EventKind
EVENT_KIND_ROLL: EventKind
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_STARTING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState

class VitalsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VitalsResponse(_message.Message):
    __slots__ = ("ranks",)
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[RankVitals]
    def __init__(self, ranks: _Optional[_Iterable[_Union[RankVitals, _Mapping]]] = ...) -> None: ...

class RankVitals(_message.Message):
    __slots__ = ("replica", "epoch", "rank", "heard_seconds", "memory_bytes", "memory_total_bytes", "doing")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    HEARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    replica: int
    epoch: int
    rank: int
    heard_seconds: float
    memory_bytes: int
    memory_total_bytes: int
    doing: str
    def __init__(self, replica: _Optional[int] = ..., epoch: _Optional[int] = ..., rank: _Optional[int] = ..., heard_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., doing: _Optional[str] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    def __init__(self, replicas: _Optional[int] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("ready",)
    READY_FIELD_NUMBER: _ClassVar[int]
    ready: int
    def __init__(self, ready: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("gateway_id",)
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    def __init__(self, gateway_id: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("deployment", "plan_json", "engine_json", "replicas", "link_secrets", "events")
    class LinkSecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    ENGINE_JSON_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LINK_SECRETS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    plan_json: str
    engine_json: str
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    link_secrets: _containers.ScalarMap[int, str]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, deployment: _Optional[str] = ..., plan_json: _Optional[str] = ..., engine_json: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., link_secrets: _Optional[_Mapping[int, str]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("unix_seconds", "kind", "replica", "epoch", "detail")
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    unix_seconds: float
    kind: EventKind
    replica: int
    epoch: int
    detail: str
    def __init__(self, unix_seconds: _Optional[float] = ..., kind: _Optional[_Union[EventKind, str]] = ..., replica: _Optional[int] = ..., epoch: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("id", "epoch", "address", "state", "detail", "ranks", "generation", "tp", "pp")
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TP_FIELD_NUMBER: _ClassVar[int]
    PP_FIELD_NUMBER: _ClassVar[int]
    id: int
    epoch: int
    address: str
    state: ReplicaState
    detail: str
    ranks: _containers.RepeatedCompositeFieldContainer[RankInfo]
    generation: int
    tp: int
    pp: int
    def __init__(self, id: _Optional[int] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., detail: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[RankInfo, _Mapping]]] = ..., generation: _Optional[int] = ..., tp: _Optional[int] = ..., pp: _Optional[int] = ...) -> None: ...

class RankInfo(_message.Message):
    __slots__ = ("rank", "node", "pid", "device")
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    node: str
    pid: int
    device: str
    def __init__(self, rank: _Optional[int] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...
