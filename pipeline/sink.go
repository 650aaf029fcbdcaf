// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

package pipeline

import "sync"

// eventSink keeps the sums of a pull and passes events on, one at a time.
type eventSink struct {
	mu      sync.Mutex
	send    func(Event)
	current map[Task]Event
	layers  map[string]int64 // bytes done of layers under way
	bytes   int64            // of TaskPulling, those of layers fetched again too
}

func newEventSink(send func(Event)) *eventSink {
	if send == nil {
		send = func(Event) {}
	}
	return &eventSink{send: send, current: map[Task]Event{}, layers: map[string]int64{}}
}

// start begins a task whose total is known.
func (s *eventSink) start(task Task, total, cached int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Event{Task: task, State: Started, Bytes: cached, Total: total, Cached: cached}
	s.current[task] = e
	s.send(e)
}

// task reports a state of a whole task.
func (s *eventSink) task(task Task, state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.current[task]
	e.Task, e.State = task, state
	if state == Done {
		e.Bytes = e.Total
	}
	s.current[task] = e
	s.send(e)
}

// layer reports the beginning or the end of a layer.
func (s *eventSink) layer(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send(e)
}

// advance counts n bytes of a layer and of its task. A layer that is fetched
// again does not count twice.
func (s *eventSink) advance(task Task, layer string, n int, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if task == TaskPulling {
		s.bytes += int64(n)
	}
	e := s.current[task]
	step := min(int64(n), max(total-s.layers[layer], 0))
	s.layers[layer] += step
	e.State, e.Bytes = Progress, min(e.Bytes+step, e.Total)
	s.current[task] = e
	s.send(Event{Task: task, State: Progress, Layer: layer, Bytes: s.layers[layer], Total: total})
	s.send(e)
}

// fetched is the number of bytes counted by advance.
func (s *eventSink) fetched() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// notFetched takes back what was counted: it came from this machine.
func (s *eventSink) notFetched() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes = 0
}
