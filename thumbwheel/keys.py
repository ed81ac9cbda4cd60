"""Every key in Redis.

All keys of a namespace share the hash tag ``{thumbwheel:<namespace>}``, so they live in one slot and the scripts also
run on a cluster.

    ...:turn:<turn_id>        hash    t: sealed TurnRecord; r0..r7: sealed ResponseRecord; v0..v7: its version; owner;
                                      last: latest event id
    ...:current:<turn_id>     hash    its current votes; <rater> <kind> <index> -> event id, a space, sealed VoteEvent
    ...:turns                 zset    turns without a vote, by time (ms)
    ...:rated                 zset    turns with a current vote, by time (ms)
    ...:rated_by:<rater>      zset    the same, of one rater
    ...:owned_by:<rater>      zset    all turns of who asked, by time (ms)
    ...:answers:<version>     zset    the latest turns that a version answered, by time (ms); lapses with the turns
    ...:idempotency:<rater>:<key>  string  digest of the content, a space, event id; lapses
    ...:votes                 stream  v: sealed VoteEvent; consumer group "learner"
    ...:dead                  stream  corrupt votes and manifests: id, v
    ...:lease                 string  who leads; lapses
    ...:fence                 string  the newest fencing token
    ...:manifest              hash    cycle_id, data: sealed BatchManifest of the cycle under way
    ...:pulse                 string  JSON: what the learner is doing (see pulse.py); lapses
    ...:frozen                string  sealed Struct: why the learner stands (see freeze.py)
    ...:pardoned              string  digest of the batch that was last let pass
    ...:lineage               list    sealed CycleRecord, newest first
    ...:done                  set     ids of committed cycles
    ...:versions              hash    name -> sealed VersionRecord
    ...:version_order         zset    names by adapter id
    ...:adapter_ids           string  the newest adapter id
    ...:live                  string  names of the live version and of those that were live before it, newest first;
                                      then "?" and the name of the one on trial, if one is
    ...:changes               stream  v: sealed VersionRecord; l: name of the live version
    ...:erased                hash    rater -> when (ms) the person was erased; what is older is not kept
    ...:erasures              string  how many there were
    ...:learned:<rater>       set     names of versions that learned from the person
    ...:credentials           hash    key id -> sealed KeyRecord
    ...:spent:<budget>        hash    requests, tokens: when (ms) what was spent will have been earned again; lapses
    ...:running:<budget>      zset    chat calls under way, by the time (ms) when they lapse
"""

from __future__ import annotations


class Keys:
    """The keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._tag = f"{{thumbwheel:{namespace}}}:"
        self.turns = self._tag + "turns"
        self.rated = self._tag + "rated"
        self.votes = self._tag + "votes"
        self.dead = self._tag + "dead"
        self.lease = self._tag + "lease"
        self.fence = self._tag + "fence"
        self.manifest = self._tag + "manifest"
        self.pulse = self._tag + "pulse"
        self.frozen = self._tag + "frozen"
        self.pardoned = self._tag + "pardoned"
        self.lineage = self._tag + "lineage"
        self.done = self._tag + "done"
        self.versions = self._tag + "versions"
        self.version_order = self._tag + "version_order"
        self.adapter_ids = self._tag + "adapter_ids"
        self.live = self._tag + "live"
        self.changes = self._tag + "changes"
        self.erased = self._tag + "erased"
        self.erasures = self._tag + "erasures"
        self.credentials = self._tag + "credentials"

    def turn(self, turn_id: str) -> str:
        return f"{self._tag}turn:{turn_id}"

    def current(self, turn_id: str) -> str:
        return f"{self._tag}current:{turn_id}"

    def rated_by(self, rater: str) -> str:
        return f"{self._tag}rated_by:{rater}"

    def answers(self, version: str) -> str:
        return f"{self._tag}answers:{version}"

    def owned_by(self, rater: str) -> str:
        return f"{self._tag}owned_by:{rater}"

    def learned(self, rater: str) -> str:
        return f"{self._tag}learned:{rater}"

    def spent(self, budget: str) -> str:
        return f"{self._tag}spent:{budget}"

    def running(self, budget: str) -> str:
        return f"{self._tag}running:{budget}"

    def idempotency(self, rater: str, key: str) -> str:
        return f"{self._tag}idempotency:{rater}:{key}"
