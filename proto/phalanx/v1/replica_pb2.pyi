from phalanx.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SequenceEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEQUENCE_END_UNSPECIFIED: _ClassVar[SequenceEnd]
    SEQUENCE_END_STOP: _ClassVar[SequenceEnd]
    SEQUENCE_END_LENGTH: _ClassVar[SequenceEnd]
    SEQUENCE_END_CANCELLED: _ClassVar[SequenceEnd]
    SEQUENCE_END_QUEUE_FULL: _ClassVar[SequenceEnd]
    SEQUENCE_END_REJECTED: _ClassVar[SequenceEnd]
    SEQUENCE_END_EXPIRED: _ClassVar[SequenceEnd]
    SEQUENCE_END_SHED: _ClassVar[SequenceEnd]
SEQUENCE_END_UNSPECIFIED: SequenceEnd
SEQUENCE_END_STOP: SequenceEnd
SEQUENCE_END_LENGTH: SequenceEnd
SEQUENCE_END_CANCELLED: SequenceEnd
SEQUENCE_END_QUEUE_FULL: SequenceEnd
SEQUENCE_END_REJECTED: SequenceEnd
SEQUENCE_END_EXPIRED: SequenceEnd
SEQUENCE_END_SHED: SequenceEnd

class AttachRequest(_message.Message):
    __slots__ = ("submit", "cancel", "pause", "unpause")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    UNPAUSE_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    cancel: Cancel
    pause: Pause
    unpause: Unpause
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., unpause: _Optional[_Union[Unpause, _Mapping]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("key", "token_ids", "prompt_len", "sampling", "priority", "tenant", "weight", "timeout_ms", "request_id", "traceparent")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    key: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_len: int
    sampling: _inference_pb2.Sampling
    priority: int
    tenant: str
    weight: float
    timeout_ms: int
    request_id: str
    traceparent: str
    def __init__(self, key: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_len: _Optional[int] = ..., sampling: _Optional[_Union[_inference_pb2.Sampling, _Mapping]] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., weight: _Optional[float] = ..., timeout_ms: _Optional[int] = ..., request_id: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: int
    def __init__(self, key: _Optional[int] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: int
    def __init__(self, key: _Optional[int] = ...) -> None: ...

class Unpause(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: int
    def __init__(self, key: _Optional[int] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("news", "load", "registry")
    NEWS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    news: _containers.RepeatedCompositeFieldContainer[SequenceNews]
    load: ReplicaLoad
    registry: str
    def __init__(self, news: _Optional[_Iterable[_Union[SequenceNews, _Mapping]]] = ..., load: _Optional[_Union[ReplicaLoad, _Mapping]] = ..., registry: _Optional[str] = ...) -> None: ...

class SequenceNews(_message.Message):
    __slots__ = ("key", "first_token_index", "token_ids", "logprobs", "end", "cached_tokens", "detail")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    key: int
    first_token_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenLogprob]
    end: SequenceEnd
    cached_tokens: int
    detail: str
    def __init__(self, key: _Optional[int] = ..., first_token_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_inference_pb2.TokenLogprob, _Mapping]]] = ..., end: _Optional[_Union[SequenceEnd, str]] = ..., cached_tokens: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class ReplicaLoad(_message.Message):
    __slots__ = ("running", "waiting", "free_blocks", "total_blocks", "steps", "generated_tokens", "parked", "cached_blocks", "prompt_tokens", "cached_prompt_tokens")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    steps: int
    generated_tokens: int
    parked: int
    cached_blocks: int
    prompt_tokens: int
    cached_prompt_tokens: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., free_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., steps: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., parked: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ...) -> None: ...
