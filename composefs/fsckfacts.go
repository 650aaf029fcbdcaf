// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package composefs

import (
	"hash/maphash"
	"sync"

	"github.com/cfs-pull/cfs-pull/fsverity"
)

// objectFact is something that a check remembers about an object.
type objectFact uint8

const (
	factCounted objectFact = 1 << iota // it is there, and what it takes on disk has been counted
	factClaimed                        // somebody checks its content, or has
)

// noted says how an attempt to note a fact went.
type noted uint8

const (
	notedNow    noted = iota // it was not noted before
	notedBefore              // it was
	notNoted                 // there are too many objects to remember it
)

// factKey stands for an object with fewer bytes than its digest has. Half of it
// is a hash that nobody who prepares a repository can foresee: an object that
// has the key of another one would go unchecked.
type factKey struct{ prefix, hash uint64 }

// objectFacts are facts about objects, which layers and EROFS images name again
// and again. Not more than about maxRemembered of them are kept.
type objectFacts struct {
	seed   maphash.Seed
	shards [fanDirs]struct {
		mu    sync.Mutex
		facts map[factKey]objectFact
	}
}

func (x *objectFacts) key(id fsverity.Digest) (shard byte, key factKey) {
	var raw [fsverity.MaxDigestSize]byte
	id.AppendBytes(raw[:0])
	return raw[0], factKey{keyOf(raw[:]).high, maphash.Bytes(x.seed, raw[:])}
}

// has reports whether a fact was noted.
func (x *objectFacts) has(id fsverity.Digest, f objectFact) bool {
	i, key := x.key(id)
	shard := &x.shards[i]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	return shard.facts[key]&f != 0
}

// note notes a fact.
func (x *objectFacts) note(id fsverity.Digest, f objectFact) noted {
	i, key := x.key(id)
	shard := &x.shards[i]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	old, known := shard.facts[key]
	switch {
	case old&f != 0:
		return notedBefore
	case !known && len(shard.facts) >= maxRemembered/fanDirs:
		return notNoted
	case shard.facts == nil:
		shard.facts = map[factKey]objectFact{}
	}
	shard.facts[key] = old | f
	return notedNow
}

// claim makes the caller the one who checks the content of an object, if it
// returns notedNow.
func (x *objectFacts) claim(id fsverity.Digest) noted { return x.note(id, factClaimed) }
