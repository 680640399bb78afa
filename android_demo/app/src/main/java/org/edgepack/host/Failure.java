package org.edgepack.host;

import java.util.Map;

/** What a person is told: one sentence without paths, and perhaps what helps. */
public final class Failure extends Exception {
    private static final long serialVersionUID = 1L;

    public final String hint;

    public Failure(String message) {
        this(message, null);
    }

    public Failure(String message, String hint) {
        super(message);
        this.hint = hint;
    }

    /** As the event `failed`. */
    public Map<String, Object> event(String id) {
        Map<String, Object> event = Json.of("id", id, "event", "failed", "message", getMessage());
        if (hint != null) event.put("hint", hint);
        return event;
    }
}
