package org.edgepack.demo;

import android.app.Notification;
import android.app.NotificationManager;
import android.content.Context;
import android.content.Intent;
import android.os.PowerManager;
import java.lang.reflect.InvocationTargetException;

/**
 * Calls that are younger than API 23, by their names: Debian's android.jar ends there, and
 * tools/build_apk.py compiles against it. All are public.
 */
final class Newer {
    private static final int IMPORTANCE_LOW = 2;

    private Newer() {}

    /** API 26. Throws IllegalStateException where Android does not let the app begin one now. */
    static void startForegroundService(Context context, Intent intent) {
        call(context, Context.class, "startForegroundService", Intent.class, intent);
    }

    /** API 26; making one that is there changes nothing but its name. */
    static void createChannel(Context context, String id, CharSequence name) {
        Object manager = context.getSystemService(Context.NOTIFICATION_SERVICE);
        try {
            Class<?> channel = Class.forName("android.app.NotificationChannel");
            Object made = channel.getConstructor(String.class, CharSequence.class, int.class)
                    .newInstance(id, name, IMPORTANCE_LOW);
            call(manager, NotificationManager.class, "createNotificationChannel", channel, made);
        } catch (ReflectiveOperationException never) {
            throw new IllegalStateException(never);
        }
    }

    /** API 26. */
    static void setChannel(Notification.Builder builder, String id) {
        call(builder, Notification.Builder.class, "setChannelId", String.class, id);
    }

    /** API 29: `PowerManager.THERMAL_STATUS_*`, or -1 where the phone does not tell. */
    static int thermalStatus(PowerManager power) {
        try {
            return (Integer) PowerManager.class.getMethod("getCurrentThermalStatus").invoke(power);
        } catch (ReflectiveOperationException older) {
            return -1;
        }
    }

    private static void call(Object on, Class<?> type, String name, Class<?> kind, Object value) {
        try {
            type.getMethod(name, kind).invoke(on, value);
        } catch (InvocationTargetException thrown) {
            Throwable cause = thrown.getCause();
            if (cause instanceof RuntimeException) throw (RuntimeException) cause;
            throw new IllegalStateException(cause);
        } catch (ReflectiveOperationException never) {
            throw new IllegalStateException(never);
        }
    }
}
