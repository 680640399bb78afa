package android.webkit;

/** API 26, by its name alone: Debian's android.jar ends at API 23. Never packaged. */
public abstract class RenderProcessGoneDetail {}
