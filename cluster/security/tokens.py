"""Bearer tokens: who may use the cluster, as a file that holds no token, only their hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cluster.gateway.allowance import Allowance, Quota
from cluster.gateway.caller import Caller
from cluster.security import SecurityError
from workers.security.files import read_file
from workers.security.reload import Reloaded

_BYTES = 32  # of randomness, so that a plain hash cannot be turned around


@dataclass(frozen=True)
class Entry:
    """One token: whose it is, `sha256` of it in hexadecimal, its tenant's share (`weight`), and whether it may look at
    the cluster and drain it (`admin`). `name` is for people."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    name: str = ""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    admin: bool = False
    limits: Quota = field(default_factory=Quota)


@dataclass(frozen=True)
class Holder:
    """A caller who has shown a token."""

    caller: Caller
    admin: bool


_ENTRIES = TypeAdapter(list[Entry])


class TokenFile:
    """The tokens in a YAML (or JSON) list of `Entry`, read again when the file changes.

    Raises:
        SecurityError: the file cannot be used. Later, what was read before stays in force.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._allowances: dict[tuple[str, Quota], Allowance] = {}
        self._holders = Reloaded([path], self._read)

    def holder(self, token: str) -> Holder | None:
        """Whose token it is; None when nobody's. Takes as long for a token that is nearly right as for any other."""
        shown = hash_of(token)
        found = None
        for digest, holder in self._holders.current:
            if hmac.compare_digest(digest, shown):
                found = holder
        return found

    def _read(self) -> list[tuple[str, Holder]]:
        entries = read_entries(self._path)
        # What a token has used is not forgotten because the file has changed.
        self._allowances = {
            key: self._allowances.get(key) or Allowance(entry.limits)
            for entry in entries
            if (key := (entry.sha256, entry.limits))
        }
        return [
            (
                entry.sha256,
                Holder(Caller(entry.tenant, entry.weight, self._allowances[entry.sha256, entry.limits]), entry.admin),
            )
            for entry in entries
        ]


def read_entries(path: Path) -> list[Entry]:
    """The entries of a tokens file. Raises SecurityError; its message quotes nothing of the file."""
    remedy = f"make entries with `phalanx token new --tenant NAME --file {path}`"
    try:
        content = yaml.safe_load(read_file(path, "tokens").decode())
        entries = _ENTRIES.validate_python(content)
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SecurityError(f"tokens: {path} is no YAML{line} ({error.problem}); {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SecurityError(f"tokens: {path} is no YAML; {remedy}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise SecurityError(f"tokens: {path} has to be a list of entries ({faults}); {remedy}") from None
    weights: dict[str, float] = {}
    for number, entry in enumerate(entries):
        if entry.sha256 in {other.sha256 for other in entries[:number]}:
            raise SecurityError(f"tokens: entry {number} of {path} has the hash of an earlier one; remove one of them")
        if weights.setdefault(entry.tenant, entry.weight) != entry.weight:
            raise SecurityError(
                f"tokens: {path} gives tenant {entry.tenant} the weights {weights[entry.tenant]:g} and "
                f"{entry.weight:g}; a tenant's tokens share one weight"
            )
    return entries


def new_token() -> str:
    return f"phx_{secrets.token_urlsafe(_BYTES)}"


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
